"""Teaching: figures and their sentences, widgets, diagnostics and the exercises' checks."""
