import pandas as pd
import pytest

from steval.data.columns import ColumnOptions, Columns, resolve_columns
from steval.errors import DataError


@pytest.fixture
def obs() -> pd.DataFrame:
    return pd.DataFrame({"target_gene": ["non-targeting", "A"], "gene": ["NT", "A"], "line": ["x", "y"]})


def test_defaults_and_absent_optional_columns(obs):
    assert resolve_columns(obs) == Columns(cell_type=None, batch=None)


def test_order_of_defaults_is_option_checkpoint_record(obs):
    record = {"columns": {"perturbation": "gene", "control": "NT", "cell_type": "line"}}
    assert resolve_columns(obs, record).perturbation == "gene"
    checkpoint = Columns(perturbation="target_gene", control="non-targeting", cell_type="line", batch=None)
    assert resolve_columns(obs, record, checkpoint=checkpoint) == checkpoint
    chosen = resolve_columns(obs, record, ColumnOptions(perturbation="gene", control="NT"), checkpoint)
    assert (chosen.perturbation, chosen.control) == ("gene", "NT")


def test_wrong_columns_list_those_that_exist(obs):
    with pytest.raises(DataError, match=r"no obs column 'pert', 'kind'; its columns are: target_gene, gene, line"):
        resolve_columns(obs, options=ColumnOptions(perturbation="pert", cell_type="kind"))


def test_a_control_that_does_not_occur_names_the_nearest(obs):
    with pytest.raises(DataError, match=r"'nontargeting' does not occur.*nearest: non-targeting"):
        resolve_columns(obs, options=ColumnOptions(control="nontargeting"))
