"""Data: from text to batches.

    sources    a dataset's name -> the files that hold its text
    documents  files -> chunks -> documents, one string each
    tokenizer  documents -> token ids, for the three file formats in use
    shards     token ids on disk: flat files, an index, checksums
    prepare    documents -> shards, in parallel, once per (text, tokenizer)
    order      global sample index -> which sample of which source
    loader     shards and order -> batches of one data-parallel rank
    stream     the exception: a hub dataset tokenized on the fly

Everything up to the shards needs no torch. `python -m titan_recipes.trainer.data prepare` runs
that half alone.
"""
