"""Pickle → fine-tune and evaluate → results.json → tables."""

import warnings

# fvcore's, at import; nothing a user could do about.
warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated", FutureWarning)
