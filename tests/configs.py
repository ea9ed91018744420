"""Yaml files that never change while tests run, read once."""

import copy

from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType

from diffusion_lit.config.groups import CONF


def read_configs_once() -> None:
    """Let Hydra keep the files of conf/ and its own, which it otherwise reads again for every command line."""
    load, results = ConfigRepository.load_config, {}

    def load_once(self, config_path: str):
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.path not in (str(CONF), "hydra.conf"):
            return load(self, config_path)
        key = source.path, config_path
        if key not in results:
            results[key] = load(self, config_path)
        result = copy.copy(results[key])
        result.config, result.defaults_list = copy.deepcopy((result.config, result.defaults_list))
        return result

    ConfigRepository.load_config = load_once
