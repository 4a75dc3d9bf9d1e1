"""Writes the benchmarks' results into the README, from their JSON files here: python benchmarks/report.py"""

from pathlib import Path

import tables

from minipo.experiments.files import whole_file

README = Path(__file__).parents[1] / "README.md"
MARKS = ("<!-- made by: python benchmarks/report.py -->", "<!-- end -->")

if __name__ == "__main__":
    before, _, rest = README.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    with whole_file(README) as draft:
        draft.write_text(f"{before}{MARKS[0]}\n{tables.readme()}\n{MARKS[1]}{after}", encoding="utf-8")
