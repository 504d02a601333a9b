"""The command `m2v` as `python -m m2v_finetune`, for `accelerate launch -m m2v_finetune train ...`."""

from m2v_finetune.cli import main

if __name__ == "__main__":
    main()
