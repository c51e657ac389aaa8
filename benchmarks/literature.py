"""What the literature reports of weight generators, on recipes in its settings; published figures stand beside ours.

    loomweight train all --recipe table4 --data DIR --out runs/table4/bundle
    python -m benchmarks.literature table4 --run runs/table4 --out docs/results/table4.json
    loomweight train all --recipe fewshot --run runs/literature-fewshot --data DIR --out runs/literature-fewshot/bundle
    python -m benchmarks.literature fewshot --run runs/literature-fewshot --out docs/results/literature_fewshot.json

`table4`: whole data sets that the zoo holds, many seeds each (SANE's generation table; D2NWG, table 16): sampled
networks, no training, beside the zoo's own, what the autoencoder makes of them, and what Zeng et al. 2025 (arXiv
2506.07998) asked for: zoo models with noise, their averages, and the distance of every sample to its nearest zoo model.
`fewshot`: five-way heads of withheld classes, sampled given the support set, beside the usual probes of the same
features.
Conditioning and selecting images are of training splits, accuracy is on test splits.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import results
from benchmarks.literature_arms import RIVALS, Made, Seen, cell, distances, heads, seen_arms
from benchmarks.literature_tables import PUBLISHED
from trainer import evalsets, vae, zoo
from trainer import recipe as recipes
from trainer.vae import Codes


def table4(made: Made, options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row a data set, and what else belongs to the table."""
    by_set = defaultdict[str, list[Codes]](list)
    for c in vae.codes(made.loom.spec, list(zoo.models(made.run, made.loom.spec.name))):
        by_set[c.model.task.variant.domain].append(c)
    how = {k: getattr(options, k) for k in ("draws", "samples", "shots", "spare")}
    rows = []
    for name, models in by_set.items():
        trained_on = [c for c in models if not vae.held_out(c.model.index)]
        held = [c for c in models if vae.held_out(c.model.index)]
        test = zoo.test_images(made.recipe, made.run, made.loom.spec.name, models[0].model.task)
        s = Seen(made, trained_on, held, test)
        accuracies, sampled = seen_arms(s, **how)
        cells = {arm: cell(v) for arm, v in accuracies.items()}
        print(name, {arm: round(100 * c["mean"], 1) for arm, c in cells.items()}, flush=True)
        rows.append(
            {
                "set": name,
                "seeds": len(models),
                "known": len(trained_on),
                "test_images": len(test[1]),
                "arms": cells,
                "distances": distances(s, sampled),
            }
        )
    return rows, {**how, "steps": made.sampling(1, 0).steps}


def fewshot(made: Made, options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row a set and number of images a class, with paired leads over both rivals."""
    rows = []
    for name in made.recipe.data.domains:
        withheld = evalsets.withheld(made.recipe, made.run, name, made.runtime)
        for shots in (1, 5):
            found = defaultdict[str, list[float]](list)
            for index in tqdm(range(options.tasks), desc=f"{name} {shots}", mininterval=5):
                for arm, accuracy in heads(made, evalsets.draw(withheld, options.ways, shots, index)).items():
                    found[arm].append(accuracy)
            leads = {
                arm: {r: results.interval([a - b for a, b in zip(found[arm], found[r], strict=True)]) for r in RIVALS}
                for arm in found
                if arm not in RIVALS
            }
            cells = {arm: cell(values) for arm, values in found.items()}
            print(name, shots, {arm: round(100 * c["mean"], 1) for arm, c in cells.items()}, flush=True)
            rows.append({"set": withheld.name, "ways": options.ways, "shots": shots, "arms": cells, "leads": leads})
    return rows, {"tasks": options.tasks, "steps": made.sampling(1, 0).steps}


TABLES = {"table4": (table4, "table4"), "fewshot": (fewshot, "literature_fewshot")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=TABLES)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, default=None, help="default: RUN/bundle")
    parser.add_argument("--draws", type=int, default=10, help="table4: sets of conditioning images for each data set")
    parser.add_argument("--samples", type=int, default=50, help="table4: networks sampled for each")
    parser.add_argument("--shots", type=int, default=5, help="table4: conditioning images a class")
    parser.add_argument("--spare", type=int, default=20, help="table4: images a class to select by")
    parser.add_argument("--tasks", type=int, default=300, help="fewshot: for each row")
    parser.add_argument("--ways", type=int, default=5, help="fewshot: classes of a task")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    make, table = TABLES[options.recipe]
    made = Made.open(recipes.load(options.recipe), options.run, options.bundle or options.run / "bundle")
    rows, settings = make(made, options)
    if options.out:
        card = made.bundle.manifest["card"]
        run = {
            "gate": card["gate"],
            "stage_seconds": card["stage_seconds"],  # on the clock, whatever else the machine did
            "encoder_classes": json.loads((options.run / "encoder" / "encoder.json").read_text())["classes"],
        }
        results.write(options.out, table, made.bundle.id, rows, **settings, **run, published=PUBLISHED[table])


if __name__ == "__main__":
    with torch.inference_mode():
        main()
