"""What a bridge is worth: texts and pictures as queries of one model, in CLIP's space and by the sounds they yield."""
