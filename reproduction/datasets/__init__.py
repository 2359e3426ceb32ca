"""Where labelled frames come from: CAMUS, the phantom; and their preparation."""
