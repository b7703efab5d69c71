"""Training of RAM on one's own copy of a data set: ``python -m reproductions.ram.train``.

On several GPUs: ``torchrun --nproc-per-node 4 -m reproductions.ram.train --dataset coco_48_17 --device cuda …``.
Exit codes: 0 done, 2 what was passed cannot be used, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

from reproductions.multi_label.train_command import main
from reproductions.ram.official import FULL

if __name__ == "__main__":
    main(FULL)
