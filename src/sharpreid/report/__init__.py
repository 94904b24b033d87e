"""What a person reads after a run or a sweep: tables and figures made from the recorded scores."""
