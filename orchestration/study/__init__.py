"""`l2 study`: what each execution algorithm costs; its verb and its report."""
