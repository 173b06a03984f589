"""Self-contained tiny worlds: data, tokenizer, starting policy and judge, built on one CPU core."""
