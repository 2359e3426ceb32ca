"""What is compared beside the pipeline: training sets, samplers, label edits, image quality."""
