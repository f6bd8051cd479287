"""The labeling app: Gradio pages on a FastAPI server. Imports `hfi`; only `hfi ui` imports it."""

import os

# Read by gradio when it is imported: no version check, no telemetry, and no copy of anyone's judgments in a browser or a bucket.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_RUN_HISTORY"] = "False"
