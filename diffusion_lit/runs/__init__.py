"""The run folder, and trained models from it.

A run
  run_dir           layout, output folders
  run_lock          its lock, and where a moved folder is
  checkpoints       atomic writing, selection, safe reading
  metrics_file      metrics.csv
  resume            merge stored and new overrides, refuse another configuration
  step_record       the step at which a run became non-finite, for `replay`
  build             objects from a configuration

Weights of others
  pretrained        find and read weights on disk or on the hub
  diffusers_format  a diffusers pipeline as if it were a run
  warm_start        `init_from=` and `model=pretrained`
  teacher, student  the recipe of a distillation, and the steps that its run has learned

A trained model
  stored_config     its configuration, with the settings of `evaluate set_default=true`
  stored_values     which values a stored configuration may have
  weights           which weights fit a network
  load              TrainedModel: load any trained model and generate images
  pipeline          Pipeline, the public Python class
  posthoc_ema       EMA weights of any length

Requests of the commands, checked without torch
  sample_request, evaluate_request, figure_request

Outputs of the commands
  sample_folder     PNGs, grids, GIFs, manifest of `sample`
  evaluate_run      result.json of `evaluate`
  publish           the folder of `export`, with model_card
  sweeps            jobs of a sweep, statistics, results.csv
  shards            images and features shared by many processes, with shared_work
"""
