"""Training of one run.

The way of a command, from outside to inside
  train.main, cli.launch.launch  compose and check the command line (cli.trial: with plan or fast_dev_run)
  train.train                    once per run, in the process of the command: lock, data source, exit code
  launch_run.fit                 on rank 0: choose the checkpoint, start the other ranks (they enter `follow`),
                                 call Trainer.fit
  train_rank                     on every rank: build the parts before Trainer.fit, write result.json after it
  build_run                      data, module, callbacks and Trainer from the configuration
  Trainer.fit (Lightning)        the loop; it calls the hooks of the module and of the callbacks

Beside it
  trainer.fast_dev_run=true      train_rank.fast_dev_run: no run folder, only the callbacks of the user
  plan=true                      plan, which measures with benchmark.TrainingBenchmark

What a step does
  module                         DiffusionModule: loss, validation, optimizer step, state of a checkpoint
  ema, optimizers, running_statistics, noise_levels, validation_metric
  callbacks/                     what follows a step, one concern a file; their order: build_run.RunCallbacks
  collective_sampling            generate images on all ranks
  loggers/                       tensorboard, W&B and others

Around the loop
  strategies                     devices and processes of the Trainer
  checkpoint_files               how the Trainer writes and reads checkpoints
  run_summary, run_result        lines before the first step; result.json and lines after the last
"""
