"""What a run picked, shown: views made again from their addresses, what was picked how often, probably wrong labels."""
