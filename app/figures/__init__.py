"""Figures that only the app shows, and the sentences that describe them."""
