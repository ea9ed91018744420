"""Yaml files that never change while tests run, read once, and composed without work whose result nobody needs."""

import copy
import functools
import pickle

from hydra._internal import defaults_list
from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from omegaconf import _utils, base, grammar_parser

from diffusion_lit.config.groups import CONF


def read_configs_once() -> None:
    """Let Hydra keep the files of conf/ and its own, which it otherwise reads again for every command line.

    Interpolations are parsed once, too, and the map of choices is made where a list of defaults has interpolations
    alone, which took a third of the time.
    """
    load, results = ConfigRepository.load_config, {}
    map_choices = defaults_list._create_interpolation_map

    def load_once(self, config_path: str):
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.path not in (str(CONF), "hydra.conf"):
            return load(self, config_path)
        key = source.path, config_path
        if key not in results:
            results[key] = pickle.dumps(load(self, config_path))  # Hydra changes what it gets; this copies fast
        return pickle.loads(results[key])

    def map_choices_if_used(overrides, defaults, self_added: bool):
        return map_choices(overrides, defaults, self_added) if any(d.is_interpolation() for d in defaults) else None

    ConfigRepository.load_config = load_once
    ConfigRepository.__deepcopy__ = lambda self, memo: copy.copy(self)  # of which Hydra replaces the list of sources
    defaults_list._create_interpolation_map = map_choices_if_used
    base.parse = _utils.parse = functools.cache(grammar_parser.parse)  # its trees are only read
