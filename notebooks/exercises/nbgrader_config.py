"""nbgrader's settings for minipo's assignments; this folder is the course (see README.md here)."""

c = get_config()  # noqa: F821  (traitlets puts it here)

c.CourseDirectory.course_id = "minipo"
# One cell of assignment 5 trains a few short runs; nbgrader's own limit is 30 s a cell.
c.ExecutePreprocessor.timeout = 1800
