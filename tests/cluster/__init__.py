"""What only several machines show, on hosts and a SLURM that the tests make themselves: `pytest -m cluster`."""
