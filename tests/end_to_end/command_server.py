"""Runs `aalp` for the shell blocks of the docs without paying for the import of torch each time.

The server imports once and forks for each command; the client, an `aalp` on the PATH of a block's shell, hands over its
folder, its words and its three streams, and ends with the command's exit code. Everything else is the real command.
"""

from __future__ import annotations

import array
import importlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

CLIENT = """#!{python} -IS
import array, json, os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({path!r})
words = json.dumps([os.getcwd(), sys.argv[1:]]).encode()
link.sendmsg([len(words).to_bytes(4, "big") + words], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
code = link.recv(1)
sys.exit(code[0] if code else 99)
"""


def shorten(words: list[str]) -> list[str]:
    """The words with what makes the command short, which is told in CONTRIBUTING.md."""
    given = set(words)
    # A run that goes on alone has the options it was begun with.
    alone = "--resume" in given and not {"--config", "--data"} & given
    return words if alone or {"--help", "-h", "--help-all"} & given else words + SHORT.get(words[0] if words else "", [])


FEW_IMAGES = ["--data_options.images", "100", "--data_options.validation", "20"]
ONE_EPOCH = [
    *("--training.epochs", "1", "--training.batch_size", "32", "--training.validation_steps", "1", "--attack.steps", "1"),
    *("--evaluation.attacks", "fgsm,apgd-ce", "--evaluation.images", "4"),
    *FEW_IMAGES,
]
SHORT = {
    "train": ONE_EPOCH,
    "compare": [*ONE_EPOCH, "--objectives", "at,aalp", "--seeds", "0"],
    "search": FEW_IMAGES,
    "evaluate": ["--images", "4", "--attacks", "fgsm,apgd-ce"],
    "audit": ["--images", "2"],
    "analyze": ["--images", "4"],
}
"""What is added to each command. An audit of two images can decide little: here its exit codes 3 and 4 count as 0."""


LATE_IMPORTS = ("jsonargparse", "pandas", "pyarrow.parquet", "sklearn.datasets", "torch.utils.tensorboard")
"""What a command would import else, each time."""


def write_client(folder: Path, path: str) -> None:
    """An executable `aalp` that talks to the server at a socket's path."""
    file = folder / "aalp"
    file.write_text(CLIENT.format(python=sys.executable, path=path))
    file.chmod(0o755)


def serve(path: str) -> None:
    """Answer commands until killed."""
    import torch

    torch.set_num_threads(1)
    from aalp.cli import VERBS, main

    for module in (*(f"aalp.commands.{verb}" for verb in VERBS), *LATE_IMPORTS):
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    while True:
        link, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os._exit(_command(link, main))
        link.close()


def _command(link: socket.socket, main: object) -> int:
    head, ancillary, _, _ = link.recvmsg(4, socket.CMSG_SPACE(12))
    streams = array.array("i")
    for _, _, data in ancillary:
        streams.frombytes(data)
    size, text = int.from_bytes(head, "big"), b""
    while len(text) < size:
        text += link.recv(size - len(text))
    folder, words = json.loads(text)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    code = 70  # a bug of ours: its traceback is on stderr
    try:
        code = main(shorten(words))  # type: ignore[operator]
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    link.sendall(bytes([0 if words[:1] == ["audit"] and code in (3, 4) else code]))
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
