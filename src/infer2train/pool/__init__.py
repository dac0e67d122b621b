"""Where engines run: in the trainer's own process (`inline`); other processes and clusters fulfil the same contract."""
