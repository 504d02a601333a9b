"""Composes, annotates and renders the quickstart pieces; `compose_quickstart.py` is the entry."""
