"""What a data set is made of on disk: its layout, annotations, splits, images and manifest."""
