"""A page to try a model: `m2v demo`, and the Space with the same page."""

from m2v_finetune.demo.page import build_page, launch_page
from m2v_finetune.demo.space import push_space, space_files

__all__ = ["build_page", "launch_page", "push_space", "space_files"]
