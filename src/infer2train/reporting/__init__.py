"""What a run did, for people: summaries, tables, curves, contact sheets and one self-contained HTML file."""
