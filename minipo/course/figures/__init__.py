"""Every figure of the course, and the sentence that describes it.

Figures are pure functions from arrays or tables to `plotly.graph_objects.Figure`; sentences are pure functions from the
same numbers to text, so that every conclusion follows from the data. An objective has one colour
everywhere, and whatever DynamicPO does is blue (Okabe and Ito's palette, and for the extensions Tol's muted one: safe
for colour-blind readers).
"""
