"""Other people's models, rows and arguments: what of them minipo takes, what it refuses, and why.

A reader of the method may leave this out.
"""
