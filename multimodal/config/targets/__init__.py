"""What a `_target_` may name: resolved, judged by its place, bound to its signature."""
