"""`diffusion_lit.train` in which every rank also writes down what its weights and batches were.

torchrun --nproc-per-node 2 -m tests.rank_digests <folder> <words of a command line>
"""

import hashlib
import json
import sys
from pathlib import Path

from diffusion_lit.distributed import collectives


def digest(tensors) -> str:
    return hashlib.blake2b(b"".join(t.detach().cpu().numpy().tobytes() for t in tensors)).hexdigest()


def main() -> None:
    folder = Path(sys.argv.pop(1))
    from diffusion_lit import train
    from diffusion_lit.training import module as training_module
    from diffusion_lit.training import train_rank as training_run

    finish, draw, seen = training_run.finish_run, training_module.draw_random_numbers, []

    def noted_draw(seed, start, count, *rest):
        draws = draw(seed, start, count, *rest)
        seen.append([start, count, digest([draws.eps]), draws.u_timestep.tolist()])
        return draws

    def noted_finish(parts):
        module = parts.module
        found = {"net": digest(module.net.parameters()), "ema": digest(module.ema.parameters()), "draws": seen}
        (folder / f"rank{collectives.rank()}.json").write_text(json.dumps(found))
        return finish(parts)

    training_run.finish_run, training_module.draw_random_numbers = noted_finish, noted_draw
    train.main()


if __name__ == "__main__":
    main()
