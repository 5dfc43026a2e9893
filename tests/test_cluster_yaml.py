"""cluster.yaml is a file that Ray accepts."""

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parent.parent / "cluster.yaml"


def test_ray_accepts_it() -> None:
    config = yaml.safe_load(CLUSTER.read_text())
    validate_config(prepare_config(config))
    assert config["available_node_types"]["gpu-worker"]["resources"]["GPU"] == 1
    assert "~/harness-src" in config["file_mounts"]


def test_ray_refuses_a_misspelt_key() -> None:
    config = yaml.safe_load(CLUSTER.read_text()) | {"max_wrokers": 3}
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config(config))
