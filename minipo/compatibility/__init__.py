"""Third-party models, rows and arguments: what minipo accepts, what it refuses, and why.

Readers of the method may skip this.
"""
