"""`l2 fills`: the fill model fitted and scored on hypothetical orders; verb, evaluation and report."""
