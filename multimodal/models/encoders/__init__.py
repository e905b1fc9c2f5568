"""From a modality's tensor to tokens and one vector."""
