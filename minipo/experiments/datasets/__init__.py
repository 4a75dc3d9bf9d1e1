"""Data: the catalogue, MovieLens-100K, published rows, and files of one's own."""
