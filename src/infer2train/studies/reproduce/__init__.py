"""The paper's figures and tables as complete runs, and whether the methods pay: seeds, controls, honest statistics."""
