"""A tour of cca_hf in five minutes, on two cores, without data or network (`make demo`).

    python scripts/demo.py                        # writes demo/report.html
    python scripts/demo.py --images 1200 --epochs 4 --output_dir /tmp/demo

Draws a data set of shapes with five attributes. Trains a small CCA on it from scratch, and the same backbone with the
same budget for one embedding space of all attributes. Evaluates both on the test split, loads the saved checkpoint
through transformers' pipeline, and writes a report. With scikit-learn, it also measures the entanglement.
"""

import argparse
import time
from pathlib import Path

from transformers import pipeline

from cca_hf import plot_neighbours, write_report
from cca_hf.data.shapes import SHAPE_ATTRIBUTES
from cca_hf.evaluation.text_table import format_table
from cca_hf.recipes.attribute_retrieval import TrainingRun
from cca_hf.recipes.shapes import EPOCHS, NUM_IMAGES, draw_shapes, train_on_shapes
from cca_hf.training.process import prepare_process
from cca_hf.visualization.neighbours import view_queries
from cca_hf.visualization.report import comparison_table

ATTRIBUTES = list(SHAPE_ATTRIBUTES)
IN_PIPELINE = 150  # images: the pipeline prepares one after the other


def main() -> None:
    options = parse_options()
    prepare_process()
    started = time.monotonic()

    if (options.images, options.epochs) == (NUM_IMAGES, EPOCHS):
        print("This takes about 5 minutes on two cores.", flush=True)
    say(f"1/5  Drawing {options.images:,} images")
    shapes = options.output_dir / "shapes"
    draw_shapes(shapes, num_images=options.images, seed=options.seed)

    say("2/5  Training CCA: one embedding space per attribute")
    trained = {"epochs": options.epochs, "seed": options.seed}
    cca = train_on_shapes(shapes, options.output_dir / "cca", **trained)

    say("3/5  Training one space for all attributes: same backbone, data and budget")
    one_space = train_on_shapes(shapes, options.output_dir / "one-space", one_space=True, **trained)

    say("4/5  Loading the saved checkpoint through transformers' pipeline")
    try_pipeline(cca)

    say("5/5  Drawing the report")
    runs = {"one space": one_space, "CCA": cca}
    results = {name: run.result for name, run in runs.items()}
    report = write_report(
        cca.model,
        cca.data,
        "test",
        results,
        options.output_dir,
        history=cca.history,
        entanglement=cca.entanglement,
        title="cca_hf on drawn shapes",
    )
    if options.picture:
        draw_figure(cca, options.picture, options.picture_query)

    say(f"Done in {time.monotonic() - started:.0f} s. Retrieval on {len(cca.data['test']):,} test images:")
    print(comparison_table(results))
    if cca.entanglement is not None:  # it needs scikit-learn
        print(f"\n{entanglement_table(runs)}")
    print(f"\nReport: {report}\nTo search with your own images: cca demo --folder {options.output_dir}")


def entanglement_table(runs: dict[str, TrainingRun]) -> str:
    """How much an embedding reveals about other attributes: 0 is no more than its label, 1 as much as the features."""
    measured = {name: run.entanglement for name, run in runs.items() if run.entanglement is not None}
    rows = [[name, f"{each.score:.2f}", f"{each.informativeness:.2f}"] for name, each in measured.items()]
    return format_table(["linear reader", "entanglement", "informativeness"], [rows])


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("demo"), help="folder for all output (%(default)s)")
    parser.add_argument("--images", type=int, default=NUM_IMAGES, help="number of images to draw (%(default)s)")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="epochs of each training (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images and the trainings (%(default)s)")
    parser.add_argument("--picture", type=Path, help="also draw the figure of the README into this file")
    parser.add_argument("--picture_query", type=int, default=0, help="row of the test image that is its query")
    return parser.parse_args()


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def try_pipeline(run: TrainingRun) -> None:
    """Finds the nearest of some test images of one query under each attribute, with the saved checkpoint alone."""
    embed = pipeline("image-feature-extraction", model=str(run.output_dir), trust_remote_code=True)
    labels = run.data.labels("test")
    names = [values for values in run.data.attributes.values()]

    def described(row: int) -> str:
        colour, shape, pattern, size, background = (each[i] for each, i in zip(names, labels[row], strict=True))
        return f"{size} {colour} {shape}, {pattern}, on {background}"

    images = run.data["test"]["image"][:IN_PIPELINE]
    embeddings = embed(images, attribute=ATTRIBUTES, return_tensors=True, batch_size=64)
    print(f"  query                 {described(0)}")
    for attribute in ATTRIBUTES:
        query, *others = (embedding[attribute] for embedding in embeddings)
        nearest = max(range(len(others)), key=lambda row: float(query @ others[row]))
        print(f"  nearest by {attribute:<10} {described(nearest + 1)}")


def draw_figure(run: TrainingRun, path: Path, query: int) -> None:
    (view,) = view_queries(run.model, run.data, "test", [query], neighbours=6)
    figure = plot_neighbours(view.image, view.neighbours, query_values=view.values, attention=view.attention)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"  {path}")


if __name__ == "__main__":
    main()
