"""What keeps the pages true: recording, promotion, exercises and their checks, progress. `python -m shared.course`."""
