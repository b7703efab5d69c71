"""Training of PatchCT on one's own copy of a data set: ``python -m reproductions.patchct.train``.

On several GPUs: ``torchrun --nproc-per-node 4 -m reproductions.patchct.train --dataset coco2014_448 --device cuda …``.
Exit codes: 0 done, 2 what was passed cannot be used, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

from reproductions.multi_label.train_command import main
from reproductions.patchct.official import FULL

if __name__ == "__main__":
    main(FULL)
