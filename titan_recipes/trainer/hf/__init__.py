"""Hugging Face checkpoints, in and out: key maps, config.json, import, export.

    families    what each family calls its tensors and numbers; a new family is one entry there
    key_map     our tensor names <-> Hugging Face's, and how one tensor is made of the other
    config      model.toml <-> config.json
    weights     a folder of safetensors: where each tensor is, slices of it, what is wrong with it
    load        such a folder into a model, sharded or not
    convert     such a folder <-> a checkpoint of ours
    assets      what lies beside the weights: tokenizer files, generation_config.json

Nothing here imports transformers: the formats are what it reads and writes, and the tests compare
logits with it.
"""
