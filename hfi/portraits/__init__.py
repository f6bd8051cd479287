"""Portraits: a world of cartoon portraits drawn by code, and the small text-to-image model trained on it.

    world.py     who exists, how often each concept shows, what the captions say
    render.py    a Person -> a 64x64 picture
    detector.py  a picture -> its attributes (trained on rendered ground truth, never on judgments)
    models.py    the architectures: VAE, text encoder, tokenizer, U-Net, CLIP
    train.py     trains each part alone, resumable
    check.py     measures the model against the world

Nothing outside this package knows the world, except the demo, the detector's registration and the prompt files.
"""
