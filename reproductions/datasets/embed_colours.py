"""Makes the vectors of colour names that ship with the project.

Run ``python -m reproductions.datasets.embed_colours FOLDER``, where FOLDER holds all-MiniLM-L6-v2 as
sentence-transformers saves it. Each name is embedded as it is, without a prompt.
Exit codes: 0 done, 2 what was passed cannot be used.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import safetensors.torch
import torch
import torch.nn.functional as F
import typer

from reproductions import UserError
from reproductions.datasets.colours import VECTORS, colour_names
from reproductions.storage import content_hash, write_atomically

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def embed_colours(folder: Path) -> bytes:
    """The names' vectors, float16 ``(949, 384)`` of length 1, and the hash of the names, as a safetensors file.

    Raises:
        UserError: the folder holds no all-MiniLM-L6-v2, or sentence-transformers is not installed.
    """
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"there is no {weights}: the folder of all-MiniLM-L6-v2 is expected")
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise UserError(f"{weights} has sha256 {found}, but that of all-MiniLM-L6-v2 is {SHA256}")
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError("embedding names needs sentence-transformers: pip install 'matchmark[text]'") from None
    names = colour_names()
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    vectors = model.encode(list(names), convert_to_tensor=True, show_progress_bar=False)
    text = F.normalize(vectors.double(), dim=-1).to(torch.float16)
    return safetensors.torch.save({"text": text.contiguous()}, {"names_sha256": content_hash(names)})


def main(folder: Annotated[Path, typer.Argument(help="all-MiniLM-L6-v2 as sentence-transformers saves it.")]) -> None:
    """Write the vectors of the colour names beside the data set's module."""
    try:
        write_atomically(VECTORS, embed_colours(folder))
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"wrote {VECTORS}")


if __name__ == "__main__":
    typer.run(main)
