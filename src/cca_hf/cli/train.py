"""`cca train`: trains a model on a data set and evaluates it."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from cca_hf.training.process import let_waiting_threads_sleep

from .options import UsageError

if TYPE_CHECKING:
    from cca_hf.recipes.command_line import DataArguments, ModelArguments, TrainingTask
    from cca_hf.training.arguments import CCATrainingArguments


class Training(TyperCommand):
    """Leaves all words but `--help` to the recipe, and lists the tasks and the flags of the recipe in the help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--help" in args:
            ctx.meta["task"] = args[0]
            return super().parse_args(ctx, ["--help"])
        ctx.args = list(args)
        return ctx.args

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from cca_hf.recipes.command_line import RETRIEVAL, TASKS, help_text

        task = ctx.meta.get("task") if ctx.meta.get("task") in TASKS else RETRIEVAL
        with formatter.section("Tasks"):
            formatter.write_dl([(name, each.help) for name, each in TASKS.items()])
        formatter.write(f"\n{help_text(everything=False, task=task)}\n")


def train(context: typer.Context) -> None:
    """Train a model, evaluate the best checkpoint once on the test split, and write a report and a model card.

    The first word may be a task. 'cca train TASK --help' shows the flags of the task. The most used flags are
    --dataset, --attributes, --backbone and --output_dir. If the data set has no validation or test split, it is cut
    from the training images. A YAML or JSON file can contain the flags.

    \b
    Examples:
      cca train --dataset me/shoes --attributes colour closure \\
          --backbone google/vit-base-patch16-224-in21k --output_dir out
      cca train settings.yaml --num_train_epochs 30 --resume_from_checkpoint last
      cca train settings.yaml --push_to_hub --hub_model_id me/cca-shoes
      cca train manipulate --dataset me/shoes --attributes colour closure \\
          --backbone google/vit-base-patch16-224-in21k --output_dir out
      cca train outfits --items furniture --outfits rooms.json --backbone apple/mobilevit-small --output_dir out
      cca train classify --dataset birds --backbone facebook/dinov2-small --output_dir out
      cca train reidentify --dataset persons --backbone facebook/dinov2-small --output_dir out
      cca train recognise --dataset people --group_column person --image_size 256 128 \\
          --backbone google/vit-base-patch16-224-in21k --local_backbone microsoft/swin-tiny-patch4-window7-224

    On several GPUs, use accelerate launch scripts/train.py with the same flags.
    """
    from cca_hf.recipes.command_line import CommandLineError, read_command

    let_waiting_threads_sleep()
    try:
        task, arguments = read_command(context.args)
    except CommandLineError as error:
        raise UsageError(str(error), ctx=context) from error
    run_task(task, arguments)


def run_task(task: "TrainingTask", arguments: tuple[Any, ...]) -> None:
    """Runs the recipe of a task on the arguments that `read_command` returned."""
    if task.has_own_data:
        train_and_write_card(*arguments, recipe=task.recipe)
    else:
        train_and_report(*arguments, recipe=task.recipe)


def train_and_write_card(args: Any, *, recipe: str) -> None:
    """As [`train_and_report`], for a task with its own data, whose recipe writes the report if it has one."""
    from cca_hf.training.process import prepare_process

    prepare_process(args.device, None)
    run = importlib.import_module(recipe).run_training(args)
    if run.result is None:  # only the main process has the result
        return
    _write_card_and_push(args, run.output_dir)


def _write_card_and_push(args: Any, output_dir: Path) -> None:
    """Writes the model card, and pushes the model if `push_to_hub` is set."""
    from cca_hf.hub.model_card import write_model_card
    from cca_hf.hub.publishing import push_model

    print(f"model card: {write_model_card(output_dir)}")
    if args.push_to_hub:
        name = args.hub_model_id or output_dir.absolute().name
        settings = {"private": args.hub_private_repo, "revision": args.hub_revision, "token": args.hub_token}
        print(f"pushed: {push_model(output_dir, name, **settings)}")


def train_and_report(
    model_args: "ModelArguments",
    data_args: "DataArguments",
    training_args: "CCATrainingArguments",
    *,
    recipe: str = "cca_hf.recipes.attribute_retrieval",
) -> None:
    """Trains, then writes the report and the model card, and pushes the model if `push_to_hub` is set.

    Args:
        recipe: the module of the task, see `TrainingTask`.
    """
    from cca_hf.recipes.evaluation import report_name, report_title
    from cca_hf.training.process import prepare_process
    from cca_hf.visualization.entanglement import plot_entanglement
    from cca_hf.visualization.figures import can_draw
    from cca_hf.visualization.report import write_report

    prepare_process(training_args.device, training_args.cpu_threads)
    run = importlib.import_module(recipe).run_training(model_args, data_args, training_args)
    if run.result is None:  # only the main process has the result
        return
    results = {report_name(run.model): run.result}
    measured: dict[str, Any] = {"history": run.history, "entanglement": run.entanglement}
    title = report_title(run.output_dir, data_args.dataset)
    page = write_report(run.model, run.data, "test", results, run.output_dir, title=title, **measured)
    if run.entanglement is not None and can_draw():
        plot_entanglement(run.entanglement).savefig(run.output_dir / "test_entanglement.png", dpi=150)
    print(f"report: {page}")
    _write_card_and_push(training_args, run.output_dir)
