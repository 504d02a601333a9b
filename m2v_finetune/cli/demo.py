"""`m2v demo`."""

import argparse

from m2v_finetune.cli.options import MODEL_HELP, Commands
from m2v_finetune.errors import UserError

LAST_PORT = 65_535


def add_commands(commands: Commands) -> None:
    """Add `demo` to the parser's subcommands."""
    demo = commands.add_parser(
        "demo",
        help="serve a page to try a model",
        description="Serves a page on this machine: drop a song or record one, and see and hear the "
        "prediction. With --push it makes a Space of the Hub with the same page. Needs the extra `demo`.",
    )
    demo.add_argument("model", help=MODEL_HELP)
    demo.add_argument(
        "--port", type=int, help="port of the page (default: the first free one from 7860)"
    )
    demo.add_argument("--push", metavar="SPACE", help="make or update a Space, such as me/my-space")
    demo.add_argument("--private", action="store_true", help="make a new Space private")
    demo.add_argument(
        "--package",
        metavar="REQUIREMENT",
        help="requirement from which the Space installs this package (default: where it was installed from)",
    )
    demo.set_defaults(command=_demo)


def _demo(arguments: argparse.Namespace) -> None:
    if arguments.push is None and (arguments.package or arguments.private):
        raise UserError("--package and --private are for --push SPACE.", code="demo-push-options")
    if arguments.port is not None and not 1 <= arguments.port <= LAST_PORT:
        raise UserError(
            f"--port is {arguments.port}; it must be from 1 to {LAST_PORT}.", code="demo-port"
        )
    import torch

    from m2v_finetune.demo import build_page, launch_page, push_space, space_files
    from m2v_finetune.model import TaskModel

    model = TaskModel.from_pretrained(arguments.model)
    if arguments.push is not None:
        files = space_files(model, arguments.model, package=arguments.package)
        url = push_space(files, arguments.push, private=arguments.private)
        print(f"Pushed to {url}\nIt installs the package from: {files['requirements.txt'].strip()}")
        return
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    launch_page(build_page(model, arguments.model), port=arguments.port)
