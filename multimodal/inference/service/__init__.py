"""A model as a service: JSON in and out, requests joined into batches."""
