"""What is fitted on validation images and applied elsewhere: calibration, thresholds, sets, referral."""
