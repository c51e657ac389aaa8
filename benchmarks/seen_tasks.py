"""Table 1: seen tasks, no training. Generated `cnn-l` for the tasks of the zoo, beside the zoo models themselves.

    python -m benchmarks.seen_tasks --run runs/starter --out docs/results/seen_tasks.json

Conditioning images come from the training split, accuracy is on the test split. Distances say whether the generator
copies: from each generated network to its nearest zoo model of the same class count, beside the zoo's own nearest-
neighbour distances (Euclidean over all weights; head rows centred over classes, since softmax does not see their
mean).
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import results
from loomweight.generator import GenerateOptions, Generator
from loomweight.weight_vae import join
from trainer import recipe as recipes
from trainer import vae, zoo


def vector(trunk: Tensor, rows: Tensor) -> Tensor:
    """All weights of a network in one row."""
    return torch.cat((trunk, (rows - rows.mean(0)).flatten()))


def nearest(x: Tensor, others: Tensor) -> Tensor:
    """Distance of each row to its nearest other row, itself excluded where both are the same tensor."""
    d = torch.cdist(x, others)
    if x is others:
        d.fill_diagonal_(torch.inf)
    return d.amin(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/starter"))
    parser.add_argument("--run", type=Path, default=Path("runs/starter"))
    parser.add_argument("--recipe", default="starter")
    parser.add_argument("--target", default="cnn-l")
    parser.add_argument("--shots", type=int, default=50)
    parser.add_argument("--most", type=int, default=None, help="at most so many tasks")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    recipe = recipes.load(options.recipe)
    generator = Generator.load(options.bundle)
    loom = generator.looms[options.target]
    spec, coder = loom.spec, vae.load(options.run, options.target)
    models = [
        c for c in vae.codes(spec, list(zoo.models(options.run, options.target))) if not vae.held_out(c.model.index)
    ]
    rng = torch.Generator().manual_seed(0)
    rows, vectors = [], {}
    for c in tqdm(models[: options.most], mininterval=5):
        task = c.model.task
        x, y = task.images(zoo.domain_of(recipe, options.run, task.variant.domain, "train"), options.shots, seed=1)
        test_x, test_y = zoo.test_images(recipe, options.run, options.target, task)
        labels = [f"{i:03d}" for i in y.tolist()]
        w = generator.weave(x.numpy(), labels, GenerateOptions(target=options.target, seed=c.model.index))
        places = {n.origin: i for i, n in enumerate(w.candidates)}
        best = w.network(next(i for i in generator.rank(w).order if i != places["closed-form"]))
        closed, mean = w.network(places["closed-form"]), w.network(places["mean"])
        mean_g, mean_r = coder.encode(c.trunk[None], c.rows[None])
        noisy = c.trunk + 0.1 * c.trunk.abs() * torch.randn(c.trunk.shape, generator=rng)
        networks = {
            "generated, ranked first": (best.trunk, best.rows),
            "generated, conditional mean": (mean.trunk, mean.rows),
            "closed form on the shared trunk": (closed.trunk, closed.rows),
            "zoo model": (c.trunk, c.rows),
            "reconstruction": (coder.decode(mean_g)[0], coder.decode_row(mean_r)[0]),
            "zoo model + 10 % noise": (noisy, c.rows),
        }
        k = len(c.rows)
        accuracies = {name: zoo.accuracy(spec, join(spec, *parts), test_x, test_y) for name, parts in networks.items()}
        rows.append(
            {
                "task": c.model.index,
                "domain": task.variant.domain,
                "view": task.variant.view,
                "classes": k,
                **accuracies,
            }
        )
        for name in ("generated, ranked first", "closed form on the shared trunk", "zoo model"):
            vectors.setdefault((k, name), []).append(vector(*networks[name]))
    summary = {}
    for name in accuracies:
        values = [r[name] for r in rows]
        kept = float(np.mean(values) / np.mean([r["zoo model"] for r in rows]))
        summary[name] = {**results.interval(values), "share_of_zoo_mean": kept}
    to_zoo, among, closed_to_zoo = [], [], []
    for k in sorted({k for k, _ in vectors}):
        stored = torch.stack(vectors[k, "zoo model"])
        if len(stored) > 1:
            to_zoo.append(nearest(torch.stack(vectors[k, "generated, ranked first"]), stored))
            among.append(nearest(stored, stored))
            closed_to_zoo.append(nearest(torch.stack(vectors[k, "closed form on the shared trunk"]), stored))
    to_zoo_all, among_all, closed_all = torch.cat(to_zoo), torch.cat(among), torch.cat(closed_to_zoo)
    distances = {
        "generated_to_nearest_zoo_median": float(to_zoo_all.median()),
        "zoo_nearest_neighbour_median": float(among_all.median()),
        # All zoo models start from the shared trunk, so it is near them all and copies none: the yardstick for `ratio`.
        "closed_form_to_nearest_zoo_median": float(closed_all.median()),
        "ratio": float(to_zoo_all.median() / among_all.median()),
        "generated_to_nearest_zoo": to_zoo_all.tolist(),
        "zoo_nearest_neighbour": among_all.tolist(),
        "closed_form_to_nearest_zoo": closed_all.tolist(),
    }
    short = {k: v for k, v in distances.items() if isinstance(v, float)}
    print(json.dumps({"summary": summary, "distances": short}, indent=1))
    if options.out:
        results.write(
            options.out,
            "seen_tasks",
            generator.bundle.id,
            rows,
            shots=options.shots,
            summary=summary,
            distances=distances,
        )


if __name__ == "__main__":
    with torch.inference_mode():
        main()
