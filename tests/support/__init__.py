"""What tests in several files use.

pytest has `tests/` on its path: ``from support.models import build_tagger``.
"""
