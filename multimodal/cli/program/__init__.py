"""What the commands share: their list, and what one of them drafts."""
