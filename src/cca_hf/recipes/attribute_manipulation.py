"""ADDE: from a data set and a backbone to embeddings whose values can be changed ("this one, but red")."""

from transformers import set_seed

from cca_hf.data.schema import AttributeDataset
from cca_hf.evaluation.arrays import to_numpy
from cca_hf.evaluation.change_search import value_vectors
from cca_hf.evaluation.manipulation import ManipulationEvaluator, ManipulationInputs
from cca_hf.evaluation.results import Result
from cca_hf.evaluation.retrieval.embeddings import Gallery
from cca_hf.models.modeling_adde import ADDEModel
from cca_hf.models.modeling_cca import CCAModel

from .attribute_retrieval import TrainingRun, load_data, make_model, refuse_earlier_run, train_and_measure
from .command_line import TASKS, DataArguments, ModelArguments
from .manipulation_trainer import ADDETrainer, ManipulationArguments


def run_training(model_args: ModelArguments, data_args: DataArguments, args: ManipulationArguments) -> TrainingRun:
    """Trains ADDE in three stages (see [`ADDETrainer`]), evaluates it once on test, and saves everything.

    The best checkpoint of the last stage is selected by a search with changed embeddings on validation. `output_dir`
    gets what [`attribute_retrieval.run_training`] writes; `test_manipulation.json`, the figures of the search with
    changed embeddings, which are in `all_results.json` as `test_manipulation_ndcg`, ...; and the folder `encoder` of
    the first stage.

    `resume_from_checkpoint="last"` continues in the stage in which the training was interrupted.

    Raises:
        ValueError: as for attribute retrieval; also if no training, validation or test images differ in exactly one
            attribute. Nothing has been trained then.
        UnreadableImageError, TrainingFailedError, CheckpointError: as for attribute retrieval.
    """
    refuse_earlier_run(args)
    refuse_earlier_run(args.first_stage())
    set_seed(args.seed)  # for the weights of the new layers; the Trainer sets the seed itself
    with args.main_process_first(desc="loading the data set"):
        data = load_data(data_args)
    model = make_model(model_args, data, ADDEModel, encoder=args.encoder)
    assert isinstance(model, ADDEModel)  # for the type checker
    trainer = ADDETrainer(model, args, data)
    # made now: a test split without changes is an error before training, not after it
    evaluator = ManipulationEvaluator(data, "test")

    def measure(trained: CCAModel, data: AttributeDataset, sides: list[Gallery]) -> Result:
        queries, *galleries = sides
        values = value_vectors(trained, to_numpy(sides[-1].embeddings), to_numpy(sides[-1].labels), data.attributes)
        inputs = ManipulationInputs(queries, galleries[0] if galleries else None, values)
        return evaluator.score(inputs, device=trained.device)

    unused = TASKS["manipulate"].unused
    return train_and_measure(trainer, data_args, unused=unused, others={"manipulation": measure})
