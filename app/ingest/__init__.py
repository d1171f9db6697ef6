"""How events get into the journal, whoever brings them. Nothing here counts them."""
