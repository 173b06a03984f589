"""Makes the results pages: every number in docs/results, measured again by one command a page."""
